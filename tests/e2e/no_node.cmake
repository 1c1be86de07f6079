message(FATAL_ERROR "the end-to-end tests need Node 18 or newer: install it and configure again (cmake --preset release)")
