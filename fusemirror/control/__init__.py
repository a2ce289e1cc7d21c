"""The control unit: decides the order of requests, as the primary or as the backup."""
