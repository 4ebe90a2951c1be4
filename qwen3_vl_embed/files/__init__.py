"""What is read from disk and what is written to it: images, lines, tables; files of vectors, whole or not there."""
