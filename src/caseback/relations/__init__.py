"""Linear relation decoding: what a relation does to a subject, as one linear map inside the model."""
