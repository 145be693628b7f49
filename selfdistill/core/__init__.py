"""The algebra: a method is a sum of terms, and a term is teacher, loss, gate and schedule."""
