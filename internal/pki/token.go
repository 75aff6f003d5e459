package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// What a join token is made of: lower-case base 32, so that each character is
// 5 random bits and nobody confuses 0 and O, or 1 and l.
const (
	tokenAlphabet     = "abcdefghijklmnopqrstuvwxyz234567"
	tokenIDLength     = 10
	tokenSecretLength = 32 // 160 bits
)

// tokenDomain keeps the hash of a token from being that of anything else.
const tokenDomain = "kuorum join token 1"

// Token lets one who knows it ask to become a node. Servers keep only its Hash.
type Token struct {
	// ID names the token: it is no secret, and may be listed and logged.
	ID string
	// Secret is what proves that somebody was given the token.
	Secret string
}

// NewToken draws a token: 10 characters of ID and 160 random bits of secret.
func NewToken() (Token, error) {
	id, err := randomText(tokenIDLength)
	if err != nil {
		return Token{}, err
	}
	secret, err := randomText(tokenSecretLength)
	if err != nil {
		return Token{}, err
	}
	return Token{ID: id, Secret: secret}, nil
}

// randomText draws from tokenAlphabet, whose 32 characters divide the 256
// values of a byte evenly.
func randomText(length int) (string, error) {
	text := make([]byte, length)
	if _, err := rand.Read(text); err != nil {
		return "", fmt.Errorf("cannot draw join token: %w", err)
	}
	for i, b := range text {
		text[i] = tokenAlphabet[int(b)%len(tokenAlphabet)]
	}
	return string(text), nil
}

// ParseToken reads what String wrote; white space around it is ignored. Its
// errors do not repeat the text, which may hold a secret.
func ParseToken(text string) (Token, error) {
	id, secret, ok := strings.Cut(strings.TrimSpace(text), ".")
	if !ok {
		return Token{}, errors.New("cannot read join token: it has no dot: copy the whole token, which is ID.SECRET")
	}
	if err := checkTokenPart("ID", id, tokenIDLength); err != nil {
		return Token{}, err
	}
	if err := checkTokenPart("secret", secret, tokenSecretLength); err != nil {
		return Token{}, err
	}
	return Token{ID: id, Secret: secret}, nil
}

func checkTokenPart(part, text string, length int) error {
	if len(text) != length {
		return fmt.Errorf("cannot read join token: its %s has %d characters instead of %d: copy the whole token",
			part, len(text), length)
	}
	if strings.Trim(text, tokenAlphabet) != "" {
		return fmt.Errorf("cannot read join token: its %s may have only the characters a to z and 2 to 7: copy it unchanged", part)
	}
	return nil
}

// String is the token as a person passes it on: ID.SECRET. It is a secret: do
// not log a Token, but its ID.
func (t Token) String() string { return t.ID + "." + t.Secret }

// Hash is what a server keeps of a token: SHA-256 in hexadecimal. The secret is
// too long to be guessed, so that one fast round is enough.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(tokenDomain + "\x00" + t.ID + "\x00" + t.Secret))
	return hex.EncodeToString(sum[:])
}

// Matches says whether hash is the token's own. How long it takes does not
// depend on where they differ.
func (t Token) Matches(hash string) bool {
	return subtle.ConstantTimeCompare([]byte(t.Hash()), []byte(hash)) == 1
}
