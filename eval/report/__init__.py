"""The parts that the HTML report is made of; `ditaccel.eval.report.page` puts them together."""
