// The vault that an Azure ML workspace wants. Nothing of the platform lies in it: identities need no secret.
@description('Region.')
param location string

@description('Name of the vault, 3 to 24 characters.')
param name string

@description('Tags of every resource.')
param tags object

@description('Whether only private endpoints and trusted Azure services reach the vault.')
param privateNetworking bool

resource vault 'Microsoft.KeyVault/vaults@2024-11-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    tenantId: tenant().tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: true
    enableSoftDelete: true
    enablePurgeProtection: true
    softDeleteRetentionInDays: 90
    publicNetworkAccess: privateNetworking ? 'Disabled' : 'Enabled'
    networkAcls: { bypass: 'AzureServices', defaultAction: privateNetworking ? 'Deny' : 'Allow' }
  }
}

output id string = vault.id
output name string = vault.name
