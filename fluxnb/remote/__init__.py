"""Pictures of hosted endpoints: which there are, what they honor, their requests, responses and limits (internal)."""
