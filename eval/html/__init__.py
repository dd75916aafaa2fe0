"""The parts that the HTML report is made of; `ditaccel.eval.report_html` puts them together."""
