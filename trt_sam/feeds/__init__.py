"""Inputs to judge by: synthetic scenes, and prompts on images."""
