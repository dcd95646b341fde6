"""Images of a runner on the GPU: brought as embeddings or photos, encoded, held by number."""
