"""How fast the course trains, against what people would use instead: `./course bench`, see README.md here."""
