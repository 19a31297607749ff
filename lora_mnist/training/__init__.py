"""Settings and images → a trained network. Knows neither the disk nor evaluation."""
