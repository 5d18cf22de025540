"""What trained members predict."""
