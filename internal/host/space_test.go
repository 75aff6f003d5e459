package host

import "testing"

func TestSpace(t *testing.T) {
	free, size, err := Space(t.TempDir())
	if err != nil || free <= 0 || size < free {
		t.Errorf("%d of %d bytes are free, %v", free, size, err)
	}
	if _, _, err := Space("/no/such/path"); err == nil {
		t.Error("a path that is not there has space")
	}
}
