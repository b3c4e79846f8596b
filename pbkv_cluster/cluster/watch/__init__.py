"""What has happened to members, told while a cluster runs."""
