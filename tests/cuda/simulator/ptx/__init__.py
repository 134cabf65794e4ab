"""The translator of PTX: what it gives, beside an independent calculation; and what it refuses."""
