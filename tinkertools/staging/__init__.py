"""Stages: runs that follow one another, of which later ones build upon what earlier ones made."""
