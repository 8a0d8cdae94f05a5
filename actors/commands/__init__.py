"""The sub-commands of `penstock`, a module each with `run(arguments) -> exit status`."""
