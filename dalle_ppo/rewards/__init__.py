"""What scores images, one file for each reward; may import models and below."""
