"""Results for people to look at: pictures and pages, as text that any browser draws."""
