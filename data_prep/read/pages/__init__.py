"""Text out of what is not plain text: web pages, crawls, dumps of wikis, XML, PDF, Word files, books, notebooks."""
