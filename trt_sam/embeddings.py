"""Embedding files; the public address of `trt_sam.imaging.embeddings`."""

from trt_sam.imaging.embeddings import Embedding, embedding_files, load_embedding, save_embedding

__all__ = ["Embedding", "embedding_files", "load_embedding", "save_embedding"]
