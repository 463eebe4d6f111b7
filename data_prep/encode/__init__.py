"""From documents to token ids and loss mask, by tokenizer and chat template; one Arrow file per slice of the corpus."""
