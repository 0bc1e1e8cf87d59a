"""Work-arounds for pyfuse3, libfuse and the kernel. Each can be taken away without touching the rest."""
