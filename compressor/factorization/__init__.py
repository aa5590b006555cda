"""What low-rank factorization needs: pairs of layers, their spectra, and the choice of ranks."""
