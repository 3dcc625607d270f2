"""From a task's calls to a frozen, digest-named data set whose labels are the teacher's answers."""
