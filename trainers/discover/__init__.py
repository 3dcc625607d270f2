"""From calls to tasks: structure first, then density inside it; ids stay from night to night."""
