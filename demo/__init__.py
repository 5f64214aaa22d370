"""The story on real data: flights of 2013, from first model to promoted challenger."""
