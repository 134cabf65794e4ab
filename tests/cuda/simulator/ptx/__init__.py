"""Tests of the PTX translator: results compared with independent calculations, and PTX that it refuses."""
