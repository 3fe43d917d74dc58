"""What runs mindstream: local services for development and tests, images and manifests."""
