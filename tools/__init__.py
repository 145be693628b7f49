"""Scripts for the repository: measurements, recorded runs and generated files."""
