"""The stages that come with Runnel, one a file, behind the same door as a stranger's."""
