"""Row sync: views, and the subscriptions that join, live and end on them."""
