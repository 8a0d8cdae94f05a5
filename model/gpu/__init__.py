"""What serves on NVIDIA GPUs: kernels, attention, uploads, graphs and the measuring of memory. Imported there only."""
