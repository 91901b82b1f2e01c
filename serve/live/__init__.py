"""What users do and what they were shown, in logs that are durable and never delay a list."""
