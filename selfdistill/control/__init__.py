"""Reinforcement learning: policies of stable-baselines3 that learn beside a teacher."""
