"""Builds the book's site, EPUB and PDF. See README.md in this folder."""
