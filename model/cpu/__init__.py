"""What makes a CPU fast: packed matrix products, and a small library in C that is compiled at first use."""
