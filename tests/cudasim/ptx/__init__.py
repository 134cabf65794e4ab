"""PTX as C++: what the driver stand-in runs where a module comes as text. README.md of tests/cudasim says what it proves."""
