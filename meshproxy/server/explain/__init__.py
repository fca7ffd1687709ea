"""What becomes of a request, and why: `meshproxy explain`, and `/explain` of the admin."""
