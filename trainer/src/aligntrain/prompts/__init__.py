"""From a conversation to token ids and labels."""
