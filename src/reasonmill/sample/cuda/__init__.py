"""The engine on CUDA: its memory, its kernels in Triton, its steps in graphs."""
