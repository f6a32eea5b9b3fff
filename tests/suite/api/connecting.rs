//! How the server is found and who we are there.
