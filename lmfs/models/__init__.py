"""Models as data: packages, the registry that finds them, the proof that they are exact."""
