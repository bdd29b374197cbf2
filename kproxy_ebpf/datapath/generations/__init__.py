"""Compiling, loading, pinning, and the migration from one generation of programs and maps to the next."""
