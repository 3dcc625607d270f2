"""From a task's calls to a frozen data set, named by digest, that the teacher's answers label."""
