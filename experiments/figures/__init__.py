"""Pictures that explain, drawn from the library itself."""
