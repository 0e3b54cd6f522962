"""`runnel demo`: export, certify, serve and stream a trained model."""
