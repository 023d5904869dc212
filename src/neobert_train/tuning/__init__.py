"""Fine-tuning and embeddings, through the trainers of transformers and sentence-transformers."""
