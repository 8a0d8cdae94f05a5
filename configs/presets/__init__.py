"""Ready settings, one YAML file each."""
