"""The update service: clicks in, interests out."""
