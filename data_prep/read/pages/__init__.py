"""Extract text from web pages, crawls, wiki dumps, XML, PDF, Word files, e-books and notebooks."""
